from rhovae_kernels.cli import main

main()
