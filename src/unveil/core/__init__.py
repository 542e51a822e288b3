"""The mathematics of diffusion: any rank of data, no network, no input or output."""
