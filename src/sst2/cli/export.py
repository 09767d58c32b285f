"""`sst2 export`."""

import sys

from sst2.inference.onnx_export.command import PROGRAM, main
from sst2.utils.console import standard_output
from sst2.utils.errors import exit_codes

if __name__ == "__main__":
    with exit_codes(PROGRAM), standard_output():
        main(sys.argv[1:])
