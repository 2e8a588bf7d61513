"""TFLiteStorePusher: releases a blessed TFLite model to a store."""
