"""Training signals: each turns a batch of images, a backbone and an upsampler into a loss."""
