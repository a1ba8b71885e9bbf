"""Survey scale on engines that exist: LSDB and Dask (`lsdb`), Ray Data (`ray`).

An engine divides a catalogue and its workers; each worker embeds what it is given by the functions here.
"""
