"""What a checkpoint on disk is and says: its tensors, its quantization, its context, its defaults."""
