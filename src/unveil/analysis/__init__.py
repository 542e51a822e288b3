"""Studies of a trained model: samplers, guidance, inverse problems, prompts, videos."""
