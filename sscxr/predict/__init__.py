"""A model or an encoder on files as they are: predictions, masks, saliency, features, neighbours."""
