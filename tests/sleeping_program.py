"""In the place of the program that builds an index: it takes its time."""

import time

if __name__ == "__main__":
    time.sleep(600)
