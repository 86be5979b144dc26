"""Distributed training: reads the cluster from TF_CONFIG, and sums tensors over its workers."""
