"""Everything about Prefect except the flows themselves.

Gives: the loopback server (``server``: ``ensure_server``, ``server_status``, ``stop_server``) and the choice between it
and the user's own (``settings``, ``access``); what surrounds a flow (``around_flow``); the record of flow runs in a run
folder (``flow_record``: ``FlowRecord``); the pages of a run (``pages``: ``PrefectView``); signals while Prefect is at
work (``interrupts``: ``DeferredInterrupts``).
Must not know: how a pipeline, a comparison or a deployment is carried out.
"""
