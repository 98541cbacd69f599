"""Several processes that run one program, by torch.distributed."""
