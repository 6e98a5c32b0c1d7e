package keyring

import (
	"errors"
	"fmt"
	"io/fs"
)

var (
	// ErrNoIdentity is a directory without an identity key: this node has
	// joined no mesh yet. It is an fs.ErrNotExist.
	ErrNoIdentity = fmt.Errorf("there is no identity key yet; join a mesh: meshctl join TOKEN: %w", fs.ErrNotExist)
	// ErrExists is a Create over an identity that is there.
	ErrExists = errors.New("there is an identity key already")
	// ErrCorrupt is a key file that no ring wrote.
	ErrCorrupt = errors.New("the key file is damaged; restore it from a backup, or empty the state directory and join again with a new token")
	// ErrCredential is an operator's file that no Write made.
	ErrCredential = errors.New("this is not the credential of an operator, or it is damaged; make another: meshctl operator create")
	// ErrExposed is an operator's file that others may use.
	ErrExposed = errors.New("the credential of an operator must be its owner's alone (chmod 600); if others could read it, remove that operator and make another: meshctl operator remove")
	// ErrNoKey is an epoch without a key here. It is an fs.ErrNotExist.
	ErrNoKey = fmt.Errorf("there is no WireGuard key of this epoch: %w", fs.ErrNotExist)
)
