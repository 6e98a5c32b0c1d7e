package keyring

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"

	"guywire/store/disk"
)

// A key file is one line: the kind, the private and the public half.
const (
	kindIdentity  = "ed25519-v1"
	kindWireGuard = "x25519-v1"

	maxFile = 4096
)

func encode(kind string, private, public []byte) []byte {
	return fmt.Appendf(nil, "%s %s %s\n", kind, base64.StdEncoding.EncodeToString(private), base64.StdEncoding.EncodeToString(public))
}

// decode reads what encode wrote, and nothing else. That the halves belong
// together is for the caller to see.
func decode(kind string, b []byte) (private, public [32]byte, err error) {
	fields := strings.Split(strings.TrimSuffix(string(b), "\n"), " ")
	if len(fields) != 3 {
		return private, public, ErrCorrupt
	}
	for i, half := range []*[32]byte{&private, &public} {
		raw, err := base64.StdEncoding.DecodeString(fields[i+1])
		if err != nil || len(raw) != len(half) {
			return [32]byte{}, [32]byte{}, ErrCorrupt // not err: it could show a part of the key
		}
		copy(half[:], raw)
	}
	if !bytes.Equal(encode(kind, private[:], public[:]), b) {
		return [32]byte{}, [32]byte{}, ErrCorrupt
	}
	return private, public, nil
}

func readKey(d *disk.Dir, kind, name string) (private, public [32]byte, err error) {
	b, err := d.Read(name, maxFile)
	if err != nil {
		return private, public, err
	}
	if private, public, err = decode(kind, b); err != nil {
		return private, public, fmt.Errorf("%s: %w", d.Path(name), err)
	}
	return private, public, nil
}
