"""Studies: experiments that answer a question of a user, with a page of the documentation each."""
