"""Machine commits by plumbing, and how they are offered: a push, a pull request, a branch."""
