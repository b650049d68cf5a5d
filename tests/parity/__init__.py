"""Parity with PyTorch autograd, zennit and captum on the torchvision classifiers."""
