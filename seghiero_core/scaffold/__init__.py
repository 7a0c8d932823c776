"""Scaffold new components and projects from templates."""
