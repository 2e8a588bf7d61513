"""What the components' reports share: style, scripts, tables, plots and numbers. Knows no component and no TFX."""
