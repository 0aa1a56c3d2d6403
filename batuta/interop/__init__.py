"""Foreign documents and formats, read into our kinds and written from them. One file per standard, none knows another;
what several are written in (`oci`) is a file of its own.

Belongs here: pure translation, bytes or text in, values out, with every size bounded. Never here: fetching, files,
sockets, or a decision; whoever has the bytes calls, and whoever asked decides.
"""
