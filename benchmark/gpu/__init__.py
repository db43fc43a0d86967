"""Stages that measure the CUDA backend."""
