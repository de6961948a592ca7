"""Campaigns: kills at random moments, and mutated inputs."""
