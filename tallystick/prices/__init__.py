"""Price lists as people keep them: in YAML files, and as lines that can be compared.

`document` and `differences` need nothing but the stubs. Reading files (`tallystick.prices.file`) needs
PyYAML, which comes with the command line.
"""

from tallystick.prices.difference import Difference, differences, lines
from tallystick.prices.document import Document, document

__all__ = ["Difference", "Document", "differences", "document", "lines"]
