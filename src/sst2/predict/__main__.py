"""`python -m sst2.predict`."""

import sys

from sst2.console import standard_output
from sst2.errors import exit_codes, print_line
from sst2.predict.command import PROGRAM, main

if __name__ == "__main__":
    with exit_codes(PROGRAM):
        try:
            with standard_output():
                main(sys.argv[1:])
        except KeyboardInterrupt as stop:
            if stop.args:
                print_line(f"{PROGRAM}: stopped{stop.args[0]}")
            sys.exit(130)  # as a shell says of programs that SIGINT has ended
