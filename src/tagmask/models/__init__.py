"""Networks without training code: images in, tensors out; they know nothing of files of a run."""
