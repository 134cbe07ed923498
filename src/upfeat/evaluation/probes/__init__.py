"""What the protocols train on upsampled features, or read from networks: heads, crops, pixels."""
