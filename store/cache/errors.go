package cache

import (
	"errors"
	"fmt"
	"io/fs"
)

var (
	// ErrEmpty is a cache that was not written yet. It is an fs.ErrNotExist.
	ErrEmpty = fmt.Errorf("nothing is cached yet: %w", fs.ErrNotExist)
	// ErrUnusable is a cached file that was damaged, or signed by another key. It
	// has been set aside under the name in the error.
	ErrUnusable = errors.New("the cached file cannot be used")
	// ErrRemoved is a cached state in which this node left or was revoked: it
	// must bring nothing up.
	ErrRemoved = errors.New("this node was removed from the mesh; to come back: meshctl leave, then meshctl join TOKEN with a new token")
	// ErrExpired is a cached state that no voter has confirmed for longer than
	// the mesh allows (Settings.CacheMaxAge): nothing may be brought up from it
	// before one does.
	ErrExpired = errors.New("the cached state is older than the mesh allows to start from; nothing comes up until a voter answers")
	// ErrNotEnrolled is a state directory that belongs to no mesh yet. It is
	// an fs.ErrNotExist.
	ErrNotEnrolled = fmt.Errorf("this node is in no mesh yet; join one: meshctl join TOKEN: %w", fs.ErrNotExist)
	// ErrOtherMesh is a state directory that belongs to another mesh or node.
	ErrOtherMesh = errors.New("the state directory belongs to another mesh or node")
)
