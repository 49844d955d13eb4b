//! Empty: this package only pins where kryoptic comes from.
