"""The same few views in other frameworks, each written as its documentation does."""
