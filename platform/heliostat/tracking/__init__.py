"""What a run leaves behind: one writer of metrics, parameters and files to MLflow, and the pages that compare runs.

Import from the modules: ``location`` (which store), ``tracker`` (writing), ``comparison`` (reading) and ``terminal``,
``figures``, ``page`` (showing). This package imports none of them, so that naming it costs nothing.
"""
