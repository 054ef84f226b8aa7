"""One run in several processes: each takes its share of every batch.

    torchrun --nproc-per-node 2 examples/several_processes.py [OUT]

Started without torchrun, it is one process. On machines with GPUs each process takes one.
"""

import sys

import torch

import rhovae_kernels as rk


def main(out: str) -> None:
    # The same weights in every process; their noise is their own.
    torch.manual_seed(0)
    vae = rk.recipes.recipe("scaled-rho-vae").build((1, 8, 8), latent=4)
    history = rk.fit(vae, "digits", epochs=5, out=out, resume="auto", quiet=True, clip=10.0)
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    rank = torch.distributed.get_rank() if processes > 1 else 0
    if rank == 0:
        last = history.epochs[-1]["test_negative_elbo"]
        print(f"{processes} processes: test −ELBO {last:.2f} nats")
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/several-processes")
