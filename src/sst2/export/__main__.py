"""`python -m sst2.export`."""

import sys

from sst2.console import standard_output
from sst2.errors import exit_codes
from sst2.export.command import PROGRAM, main

if __name__ == "__main__":
    with exit_codes(PROGRAM), standard_output():
        main(sys.argv[1:])
