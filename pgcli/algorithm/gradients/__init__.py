"""Gradients of a loss: by autograd, in closed form, or by the user's own code."""
