"""A GPU as a device: CUDA's virtual memory, streams and events. The only place that names torch's CUDA part."""
