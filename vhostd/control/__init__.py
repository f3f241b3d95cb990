"""The operator's door: commands and events in QMP form on a unix socket, and the service manager's end.

LIFE      A server is made around a listening socket and lives as long as the process. A client is greeted, negotiates,
          asks, is answered in order, hears events from its negotiation on, and goes when it likes.
OWNERS    The control thread's event loop. What a command may ask of the daemon is `commands.Host`; a device process
          and the supervisor are each one.
TRUST     A client is root or our own user (SO_PEERCRED, beside the socket's mode). What it sends is bounded: the length
          of a command, the number of clients, the answers that wait to be read. A client that overruns is dropped,
          and no other notices.
FAILURE   ControlError becomes a QMP error reply. Anything else a command raises is a bug of ours: it is logged with
          its traceback, answered as GenericError, and the client stays.
NOT HERE  What devices there are and how they are stopped (daemon, supervisor); words and tables for people (cli/).
"""
