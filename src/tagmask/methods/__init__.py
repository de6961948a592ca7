"""The methods: one paper, one file, with its network head, its loss, its training step and its maps."""
