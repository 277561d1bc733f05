"""How tokens get made."""
