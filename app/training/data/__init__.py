"""What batches are drawn from: the cache, slices, patches, augmentation, splits."""
