"""The methods, one file per paper: settings, network head, loss, training step and what they make."""
