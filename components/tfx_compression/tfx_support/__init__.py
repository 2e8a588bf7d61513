"""What the components' declarations and executors share. The one shared place that imports TFX."""
