"""The command line, `folkmoot` or `moot`: a thin face on the client and the server."""
