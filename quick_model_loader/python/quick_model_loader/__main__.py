"""`python -m quick_model_loader`: what is in a checkpoint, is it intact, how fast does it load."""

import sys

from quick_model_loader.command import main

if __name__ == "__main__":
    sys.exit(main())
