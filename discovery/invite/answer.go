package invite

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"guywire/mesh"
)

// MaxCertificate bounds the certificate in an Answer, in bytes.
const MaxCertificate = 4096

const answerMagic = "ga\x01" // last byte: version

// An Answer is everything a newcomer is given. A voter seals its encoded form,
// and the newcomer checks the seal before it reads any of it: the server that
// it talks to may be an ordinary member, which is believed in nothing.
type Answer struct {
	Mesh        mesh.MeshID
	Transcript  [sha256.Size]byte // SHA-256 of the encoded transcript that it answers
	Certificate []byte            // of the newcomer, DER
	State       []byte            // of the mesh, encoded; not empty
}

// Encode gives the canonical form: one answer, one encoding. The error wraps
// ErrAnswer.
func (a Answer) Encode() ([]byte, error) {
	if len(a.Certificate) > MaxCertificate {
		return nil, fmt.Errorf("%w: a certificate of %d bytes is longer than %d", ErrAnswer, len(a.Certificate), MaxCertificate)
	}
	if len(a.Certificate) == 0 || len(a.State) == 0 {
		return nil, fmt.Errorf("%w: its certificate or its state is missing", ErrAnswer)
	}
	b := make([]byte, 0, len(answerMagic)+len(a.Mesh)+len(a.Transcript)+2+len(a.Certificate)+len(a.State))
	b = append(append(b, answerMagic...), a.Mesh[:]...)
	b = append(b, a.Transcript[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Certificate)))
	return append(append(b, a.Certificate...), a.State...), nil
}

// DecodeAnswer reads what Encode wrote, and nothing else. The slices are parts
// of b. The error wraps ErrAnswer.
func DecodeAnswer(b []byte) (Answer, error) {
	var a Answer
	r := reader{rest: b}
	if string(r.take(len(answerMagic))) != answerMagic {
		return Answer{}, fmt.Errorf("%w: it is not one of this version", ErrAnswer)
	}
	copy(a.Mesh[:], r.take(len(a.Mesh)))
	copy(a.Transcript[:], r.take(len(a.Transcript)))
	n := r.uint(2)
	a.Certificate = r.take(n)
	a.State = r.rest
	if r.short || n == 0 || n > MaxCertificate || len(a.State) == 0 {
		return Answer{}, fmt.Errorf("%w: its length is wrong", ErrAnswer)
	}
	return a, nil
}
