"""Attacks, defences and the accuracy they leave."""
