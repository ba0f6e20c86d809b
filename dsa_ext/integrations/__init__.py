"""Other packages' models on this package's functions. A module here imports the package that it is named after, so that
it is not there before it is imported by name: `import dsa_ext.integrations.transformers`."""
