"""What a model is made of: skeletons, dry runs that find out whether it can be served, images of its weights."""
