"""Visual strategies, one file each; the file's name is the strategy's. `vllm_prune.catalogue.VISUAL` looks them up."""
