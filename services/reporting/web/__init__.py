"""The dashboard: pages for organizations, customers and operators.

It is a client like any other. Every page asks the services over gRPC with the API key of whoever is signed
in, so a page can show nothing that the key could not be answered anyway; there is no SQL here.
"""
