"""What no front-end and no driver may send, a module for each place it comes in.

LIFE      As chapters/: importing a module registers its cases, which bear the mark `hostile`.
OWNERS    A case owns nothing but what it opened through its Check.
TRUST     Everything that is sent is wrong on purpose; what comes back is believed as little as ever.
FAILURE   Whatever the answer is, the back-end must live, serve the next guest, keep no descriptor and no CPU.
NOT HERE  What is allowed: chapters/.
"""
