"""Applies a model or an encoder to image files: predictions, masks, saliency, features, neighbours."""
