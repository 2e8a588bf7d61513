"""Code that the reports share: style, scripts, tables, plots and formats of numbers. Knows no component and no TFX."""
