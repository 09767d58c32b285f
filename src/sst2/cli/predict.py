"""`sst2 predict`."""

import sys

from sst2.inference.predict.command import PROGRAM, main
from sst2.utils.console import standard_output
from sst2.utils.errors import exit_codes, print_line

if __name__ == "__main__":
    with exit_codes(PROGRAM):
        try:
            with standard_output():
                main(sys.argv[1:])
        except KeyboardInterrupt as stop:
            if stop.args:
                print_line(f"{PROGRAM}: stopped{stop.args[0]}")
            sys.exit(130)  # as a shell says of programs that SIGINT has ended
