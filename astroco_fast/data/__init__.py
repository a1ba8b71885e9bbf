"""Light curves, from files or objects to the batches that a model trains on.

Data pass through these modules from top to bottom, and never back:

    tables      what a table is: a stream of Arrow record batches
    formats       files of every kind -> tables; `FORMATS` is where a new kind is added
    tfrecord      TFRecord files, decoded (and fits_columns, the columns of FITS tables)
    words         text of ids, bands and labels in one form
    objects       tables that are Python objects (frames, Arrow, astropy, lightkurve, xarray)
    streams       those that arrive in pieces
    items         tables that come one by one, as one table
    columns     a table's columns of times, magnitudes, star ids ..., by the user's names or the usual ones
    rows        record batch -> rows in one form: numbers, text, magnitudes, the chosen band
    metadata      labels, bands and splits by star, from tables of their own
    points      rows that are points -> light curves, by (id, band), through files on disk if need be
    notes       what the user should know of an input, told once
    hats          the pieces of HATS catalogues
    paths         the files that a path, a folder or a pattern names, each once
    batch_sources light curves that are batches or arrays already
    sources     light curves in files or objects of any kind -> `CurveBatch`es (curves), by `open_source`
    seen        the check that no light curve occurs twice and no star has two labels
    clean       points that are not measurements, dropped and counted by reason

    writer      clean curves -> a store on disk, in steps that survive a kill
    convert     source -> store, resumed where it was stopped
    store       the store, memory-mapped

    periodogram power spectra and harmonic fits of light curves
    periods     light curves -> their periods, and those at which they are folded
    recovery    periods -> how many of them are those of a catalogue, by class

    views       the views of a light curve: in time, and folded at its period
    windows     light curves -> windows of 200 points in a view, and an epoch's order of them
    masking     the choice of the probed points of a window, and their replacements
    batches     windows -> padded arrays, centred and masked, computed ahead by a thread
    summary     numbers on a light curve's period and magnitudes, which stand beside its encoding
    training    a store's training and validation windows, and each rank's share of a step

    hashing     random numbers and hashes of ids, for all of these
    simulate    a simulated survey of variable stars (their light curves: shapes; as a table: simulated_table)

Embedding takes clean curves straight to windows; there is no store between.
"""
